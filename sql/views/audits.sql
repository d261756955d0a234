-- Purpose: the samples that `curator quality audit` drew.
-- Inputs:  stored_audits, stored_classes (the tables' files).
-- Grain:   one row per sampled image.
select
    s.generation::INT as generation, s.seed, s.per_class, s.min_confidence, s.image_id,
    s.label::INT as label, c.class_name, s.confidence, s.stratum::INT as stratum, s.stratum_images, s.place, s.drawn_at
from stored_audits as s
left join stored_classes as c using (label);
