-- Purpose: models of which a parent is not in the store.
-- Inputs:  stored_models.
-- Grain:   one row per model and missing parent; none in a sound store.
-- Mend:    bring models back as they were before rows left them
select m.model, m.parent
from (select model, unnest(parents) as parent from stored_models) as m
anti join stored_models as there on there.model = m.parent
order by m.model, m.parent;
