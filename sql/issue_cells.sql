-- Purpose: which class is most often given for which: the largest cells of the confident joint off its diagonal.
-- Inputs:  joint (confident_joint), stored_classes.
-- Grain:   one row per pair of classes, the largest estimate first.
-- Parameters: $cells.
select g.class_name as given_class, c.class_name, j.images, j.estimated
from joint as j
join stored_classes as g on g.label = j.given
join stored_classes as c on c.label = j.class
where j.given <> j.class
order by j.estimated desc, j.images desc, j.given, j.class
limit $cells;
