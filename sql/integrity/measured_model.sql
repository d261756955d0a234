-- Purpose: models that were evaluated or calibrated and are not in the store.
-- Inputs:  stored_evaluations, stored_calibrations, stored_models.
-- Grain:   one row per such model; none in a sound store.
-- Mend:    bring models back as they were before rows left them
select measured.model, count(*) as figures
from (select model from stored_evaluations union all select model from stored_calibrations) as measured
anti join stored_models as m on m.model = measured.model
group by measured.model
order by measured.model;
