-- Purpose: the training runs that left figures, with how far each came and what it became.
-- Inputs:  stored_metrics, stored_models.
-- Grain:   one row per run, the one that wrote last first. `registered` is null while a run goes on, and of one that broke
--          off.
select
    m.model, max(m.step) as step, max(m."at") as latest, any_value(r.created_at) as registered
from stored_metrics as m
left join stored_models as r on r.model = m.model
group by m.model
order by latest desc, m.model;
