-- Purpose: how many images of the pool a confidence threshold leaves in each class (compared in float32).
-- Inputs:  stored_labels.
-- Grain:   one row per class that the teacher used in the pool, by label.
-- Parameters: $generation, $min_confidence.
select label::INT as label, count(*) as images, count(*) filter (confidence > $min_confidence::FLOAT) as above
from stored_labels
where generation = $generation and split = 'unlabeled'
group by label
order by label;
