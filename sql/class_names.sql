-- Purpose: the names of the classes, in the order of their indexes.
-- Inputs:  stored_classes.
-- Grain:   one row per class.
select label::INT as label, class_name
from stored_classes
order by label;
