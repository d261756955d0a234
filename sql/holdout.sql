-- Purpose: what the generation's teacher says of the images whose label is known and that no model was trained on.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per labeled holdout image.
-- Parameters: $generation.
select l.image_id, l.label::INT as label, l.confidence, i.label::INT as truth, l.label = i.label as is_right
from stored_labels as l
join stored_images as i on i.image_id = l.image_id
where l.generation = $generation and i.split = 'holdout' and i.label is not null;
