-- Purpose: which class comes second where the newest teacher hesitates.
-- Inputs:  labels, classes.
-- Grain:   one row per class and second class, the most images first.
select l.class_name, s.class_name as second, count(*) as images, avg(l.margin) as mean_margin
from labels as l
join classes as s on s.label = l.top_classes[2]
where l.generation = (select max(generation) from labels) and l.split = 'unlabeled' and l.margin < 0.2
group by all
order by images desc, l.class_name, second
limit 100;
