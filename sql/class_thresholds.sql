-- Purpose: from which probability on an image counts as one of a class: the mean self-confidence of the images that are
--          given the class.
-- Source:  Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021.
-- Inputs:  self_confidences, stored_classes.
-- Grain:   one row per class of the store, by label; the threshold of a class that no image is given is null.
select
    c.label::INT as label, count(s.image_id) as images,
    -- a sum of whole numbers is the same in every order
    sum((s.self_confidence * 1099511627776)::BIGINT)::DOUBLE / 1099511627776 / count(s.image_id) as threshold
from stored_classes as c
left join self_confidences as s on s.given = c.label
group by c.label
order by c.label;
