-- Purpose: the classes of the store.
-- Inputs:  stored_classes (the table's files).
-- Grain:   one row per class.
select label, class_name
from stored_classes;
