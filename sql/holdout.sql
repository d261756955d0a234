-- Purpose: what the generation's teacher says of the images whose label is known and that no model was trained on.
-- Inputs:  stored_labels, trusted.
-- Grain:   one row per holdout image with a trusted label.
-- Parameters: $generation.
select l.image_id, l.label::INT as label, l.confidence, i.label as truth, l.label = i.label as is_right
from stored_labels as l
join trusted as i on i.image_id = l.image_id
where l.generation = $generation and i.split = 'holdout';
