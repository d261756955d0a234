-- Purpose: classes that are not numbered 0 to C-1, each number and each name once.
-- Inputs:  stored_classes.
-- Grain:   one row per class that is off; none in a sound store.
-- Mend:    bring classes back as they were before
select label, class_name
from stored_classes
qualify label is distinct from row_number() over (order by label) - 1
     or class_name is null
     or count(*) over (partition by class_name) > 1
order by label;
