-- Purpose: pool images whose class changed between the last two generations, the surest of the new class first.
-- Inputs:  labels.
-- Grain:   one row per image.
with ranked as (select distinct generation, dense_rank() over (order by generation desc) as age from labels)
select n.image_id, o.class_name as before, n.class_name as after, o.confidence as was, n.confidence
from labels as n
join labels as o using (image_id)
where
    n.generation = (select generation from ranked where age = 1)
    and o.generation = (select generation from ranked where age = 2)
    and n.split = 'unlabeled' and n.label <> o.label
order by n.confidence desc, n.image_id
limit 200;
