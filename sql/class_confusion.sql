-- Purpose: which trusted class a generation takes for which, on the holdout.
-- Inputs:  stored_labels, trusted.
-- Grain:   one row per trusted class and class that the teacher gives, the right ones too, the most images first;
--          confidence is their mean.
-- Parameters: $generation.
select
    i.label as truth, l.label::INT as label, count(*) as images,
    -- in whole billionths: the last digits of a sum of floats depend on the order of its parts
    sum((l.confidence::DOUBLE * 1e9)::BIGINT)::DOUBLE / 1e9 / count(*) as confidence
from stored_labels as l
join trusted as i on i.image_id = l.image_id
where l.generation = $generation and l.split = 'holdout' and i.split = 'holdout'
group by i.label, l.label
order by images desc, truth, l.label;
