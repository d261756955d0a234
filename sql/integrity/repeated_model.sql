-- Purpose: names that several models have.
-- Inputs:  stored_models.
-- Grain:   one row per such name; none in a sound store.
-- Mend:    bring models back as they were before the rows came twice
select model, count(*) as times
from stored_models
group by model
having count(*) > 1
order by model;
