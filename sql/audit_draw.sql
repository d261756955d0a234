-- Purpose: a random sample of each class of a generation's pool labels, stratified by confidence, to be looked at by people.
-- Inputs:  stored_labels, leaks.
-- Grain:   one row per sampled image, ordered by label, place.
-- Parameters: $generation, $min_confidence, $per_class, $seed.
--
-- What may be drawn are the candidates of a manifest: unlabeled images above the threshold that show no image of the
-- holdout, neither its bytes nor, by the newest scan, something near it. Rejected images may be drawn: what is estimated is
-- how often the teacher is right. The strata are the ranges of confidence up to 0.5, 0.7, 0.85, 0.95 and 1. Each gets its
-- share of $per_class, fractions rounded so that they add up, and not less than two images (one, where $per_class is below
-- 20), so a class may get a few more: a stratum without a sampled image would be missing from the estimate. The draw takes
-- the lowest values of a hash of image_id and seed: a larger sample of the same seed holds the smaller one, but for an image
-- or two that rounding moves to another stratum. `place` is the order of the same hash within the class, so whoever stops
-- early has still looked at a random sample.
with
frame as (
    select
        image_id, label, confidence,
        (
            (confidence > 0.5::FLOAT)::INT + (confidence > 0.7::FLOAT)::INT + (confidence > 0.85::FLOAT)::INT
            + (confidence > 0.95::FLOAT)::INT
        )::SMALLINT as stratum,
        md5_number_lower('audit/' || image_id || '/' || $seed) as key
    from stored_labels
    where generation = $generation and split = 'unlabeled' and confidence > $min_confidence::FLOAT
      and image_id not in (select image_id from leaks)
),
strata as (
    select
        label, stratum, count(*) as images,
        -- the lowest keys, without sorting the pool
        arg_min({'image_id': image_id, 'confidence': confidence, 'key': key}, (key, image_id), $per_class + 2) as lowest
    from frame
    group by label, stratum
),
shares as (
    select *, $per_class * images / sum(images) over (partition by label) as share
    from strata
),
allotted as (
    select
        *,
        floor(share) + (
            row_number() over (partition by label order by share - floor(share) desc, stratum)
            <= $per_class - sum(floor(share)) over (partition by label)
        )::INT as wanted
    from shares
),
drawn as (
    select
        label, stratum, images as stratum_images,
        unnest(lowest[1:least(images, greatest(wanted, if($per_class < 20, 1, 2)))::BIGINT]) as image
    from allotted
)
select
    image.image_id as image_id, label, image.confidence as confidence, stratum, stratum_images,
    (row_number() over (partition by label order by image.key, image.image_id))::INT as place
from drawn
order by label, place;
