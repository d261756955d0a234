-- Purpose: a sample of the images that a model is evaluated on: of each class its share, to the image.
-- Inputs:  evaluated (the rows of sql/holdout_rows.sql).
-- Grain:   one row per image, ordered by image_id: $limit of them, or all where there are no more.
-- Parameters: $limit, $seed.
--
-- The images stand in a row, class by class, within a class by a hash of image_id and seed; of equal parts of the row the
-- last image of each is taken.
with
placed as (
    select
        *,
        row_number() over (order by label, md5_number_lower('evaluate/' || image_id || '/' || $seed), image_id) as place,
        count(*) over () as images
    from evaluated
)
select image_id, uri, shard, byte_offset, byte_length, label
from placed
where place * least($limit, images) // images > (place - 1) * least($limit, images) // images
order by image_id;
