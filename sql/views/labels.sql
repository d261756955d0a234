-- Purpose: the soft labels that the teachers gave.
-- Inputs:  stored_labels, stored_classes (the tables' files).
-- Grain:   one row per image and generation.
select
    l.image_id, l.generation::INT as generation, l.model, l.split,
    l.label::INT as label, c.class_name, l.confidence, l.margin, l.entropy,
    l.top_classes::INT[] as top_classes, l.top_probs, l.tail
from stored_labels as l
left join stored_classes as c using (label);
