-- Purpose: what the newest teacher sees in the pool, class by class.
-- Inputs:  labels.
-- Grain:   one row per class, the most images first.
select
    class_name, count(*) as images, avg(confidence) as mean_confidence,
    count(*) filter (confidence > 0.3::FLOAT) as above_threshold
from labels
where generation = (select max(generation) from labels) and split = 'unlabeled'
group by all
order by images desc, class_name;
