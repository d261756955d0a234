-- Purpose: the label that training takes of each labeled image beside what a model says of it that was trained without it.
-- Inputs:  stored_held_out, labeled_rows, stored_classes.
-- Grain:   one row per image. `share` is what each class has that was cut from the soft label: tail / (C - K).
-- Parameters: $run.
select
    h.image_id, r.label as given, h.label::INT as label, h.confidence, h.top_classes, h.top_probs,
    h.tail::DOUBLE / greatest((select count(*) from stored_classes) - len(h.top_classes), 1) as share
from stored_held_out as h
join labeled_rows as r on r.image_id = h.image_id
where h.run = $run;
