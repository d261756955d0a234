-- Purpose: soft labels of labeled images from models that were trained without them.
-- Inputs:  stored_held_out, stored_classes (the tables' files).
-- Grain:   one row per labeled image and run of folds.
select
    h.image_id, h.run, h.fold::INT as fold,
    h.label::INT as label, c.class_name, h.confidence, h.margin, h.entropy,
    h.top_classes::INT[] as top_classes, h.top_probs, h.tail
from stored_held_out as h
left join stored_classes as c using (label);
