-- Purpose: what each rule of a selection says of one image. The marks are those of candidates.sql.
-- Inputs:  stored_images, pool, allowed, decisions, accepted, holdout_twins, leaks, candidates.
-- Grain:   one row, or none if the image is not in the store.
-- Parameters: $image_id, $min_confidence.
select
    i.uri, i.split, i.status,
    p.label::INT as teacher_label, p.confidence,
    p.image_id is not null as is_labeled,
    l.image_id is not null as passes_where,
    (/* confidence */ l.confidence > $min_confidence::FLOAT or /* accepted */ false) as is_above,
    d.decision, d.new_label::INT as new_label,
    coalesce(a.label = coalesce(d.new_label, p.label), false) as is_accepted,
    i.image_id in (select image_id from holdout_twins) as is_twin,
    i.image_id in (select image_id from leaks) as is_leak,
    i.image_id in (select image_id from candidates) as is_candidate
from stored_images as i
left join pool as p on p.image_id = i.image_id
left join (select * from allowed where image_id = $image_id) as l on l.image_id = i.image_id
left join decisions as d on d.image_id = i.image_id
left join accepted as a on a.image_id = i.image_id
where i.image_id = $image_id;
