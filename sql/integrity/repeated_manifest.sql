-- Purpose: names that several manifests have; SQL takes names of upper and lower case for the same.
-- Inputs:  stored_manifests.
-- Grain:   one row per such name; none in a sound store.
-- Mend:    bring manifests back as they were before the rows came twice
select lower(name) as name, count(*) as times
from stored_manifests
group by lower(name)
having count(*) > 1
order by lower(name);
