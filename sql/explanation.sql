-- Purpose: what each rule of a selection says of one image.
-- Inputs:  stored_images, pool, allowed, decisions, holdout_twins.
-- Grain:   one row, or none if the image is not in the store.
-- Parameters: $image_id, $min_confidence.
select
    i.uri, i.split, i.status,
    l.label::INT as teacher_label, l.confidence,
    l.image_id is not null as is_labeled,
    $image_id in (select image_id from allowed where image_id = $image_id) as passes_where,
    l.confidence > $min_confidence::FLOAT as is_above,
    d.decision, d.new_label::INT as new_label,
    i.image_id in (select image_id from holdout_twins) as is_twin
from stored_images as i
left join pool as l on l.image_id = i.image_id
left join decisions as d on d.image_id = i.image_id
where i.image_id = $image_id;
