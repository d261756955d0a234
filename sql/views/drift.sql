-- Purpose: each generation compared with the one before it, counted; made when it is published, or at the first question.
-- Inputs:  stored_drift, stored_classes (the tables' files).
-- Grain:   one row per generation, split, trusted class, class before and class after.
select
    d.generation::INT as generation, d.previous::INT as previous, d.split,
    t.class_name as truth, b.class_name as class_before, a.class_name as class_after,
    d.images, d.confidence_before, d.confidence_after
from stored_drift as d
left join stored_classes as t on t.label = d.truth
left join stored_classes as b on b.label = d.label_before
left join stored_classes as a on a.label = d.label_after;
