-- Purpose: the models over the generations, with what they were trained by and how they did on the holdout then.
-- Inputs:  stored_models.
-- Grain:   one row per model, by generation, then time. Figures that a model does not have are null.
select
    generation::INT as generation, model,
    recipe ->> '$.title' as recipe,
    (metrics ->> '$.steps')::BIGINT as steps,
    (metrics ->> '$.top1')::DOUBLE as top1,
    (metrics ->> '$.ece')::DOUBLE as ece,
    (metrics ->> '$.images_per_second')::DOUBLE as images_per_second,
    manifest, parents, created_at
from (select * replace (case when json_valid(metrics) then metrics end as metrics) from stored_models)
order by generation, created_at, model;
