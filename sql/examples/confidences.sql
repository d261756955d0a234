-- Purpose: how confidences spread in each generation, in steps of 0.05.
-- Inputs:  labels.
-- Grain:   one row per generation and step.
select generation, least(floor(confidence * 20), 19) / 20 as from_confidence, count(*) as images
from labels
where split = 'unlabeled'
group by all
order by all;
