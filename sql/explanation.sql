-- Purpose: what each rule of a selection says of one image, and its rank among those that the policy lets into its class.
-- Inputs:  stored_images, pool, allowed, decisions, holdout_twins, candidates, eligible.
-- Grain:   one row, or none if the image is not in the store.
-- Parameters: $image_id, $min_confidence.
with
mine as (select * from eligible where image_id = $image_id),
-- by the side of the image itself, so that a class of millions is counted in one pass
ranked as (
    select
        count(*) as of_class,
        count(*) filter (e.score > m.score or e.score = m.score and e.image_id <= m.image_id) as rank
    from mine as m
    join eligible as e on e.label = m.label
)
select
    i.image_id, i.uri, i.split, i.status,
    l.label::INT as teacher_label, l.confidence,
    l.image_id is not null as is_labeled,
    $image_id in (select image_id from allowed where image_id = $image_id) as passes_where,
    l.confidence > $min_confidence::FLOAT as is_above,
    d.decision, d.new_label::INT as new_label,
    i.image_id in (select image_id from holdout_twins) as is_twin,
    m.image_id is not null as is_eligible,
    m.label as label, m.score,
    nullif(r.rank, 0) as rank, nullif(r.of_class, 0) as of_class
from stored_images as i
left join pool as l on l.image_id = i.image_id
left join decisions as d on d.image_id = i.image_id
left join mine as m on m.image_id = i.image_id
cross join ranked as r
where i.image_id = $image_id;
