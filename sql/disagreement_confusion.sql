-- Purpose: the confusion on the holdout in both generations: which class is taken for which, how often before and now.
-- Inputs:  mistakes, stored_classes.
-- Grain:   one row per trusted class and other class that a teacher gave, the most frequent now first.
-- Parameters: $limit.
select t.class_name as truth, g.class_name as taken_for, m.before, m.after
from mistakes as m
join stored_classes as t on t.label = m.truth
join stored_classes as g on g.label = m.label
order by m.after desc, m.before desc, m.truth, m.label
limit $limit;
