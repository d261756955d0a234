-- Purpose: how many images have which confidence, in 50 steps of 0.02; made when a generation is published, or by
--          `curator index`.
-- Inputs:  stored_histograms, stored_classes (the tables' files).
-- Grain:   one row per generation, split, class and step that holds an image; step counts from 0.
select
    h.generation::INT as generation, h.split, h.label::INT as label, c.class_name, h.step::INT as step, h.images
from stored_histograms as h
left join stored_classes as c using (label);
