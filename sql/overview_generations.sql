-- Purpose: what each generation's teacher said, and how often it is right where that is known.
-- Inputs:  stored_labels, trusted, stored_manifests, stored_models.
-- Grain:   one row per generation that has a model or labels.
--
-- has_weights is false where the labels came from another tool. top1 is the share of labeled holdout images to which the
-- teacher gives their trusted class.
with
pool as (
    select
        generation, any_value(model) as model,
        count(*) filter (where split = 'unlabeled') as pool,
        avg(confidence) filter (where split = 'unlabeled') as confidence,
        count(*) filter (where split = 'unlabeled' and confidence > 0.3::FLOAT) as confident
    from stored_labels
    group by generation
),
holdout as (
    select l.generation, count(*) as holdout, avg((l.label = i.label)::INT) as top1
    from stored_labels as l
    join trusted as i on i.image_id = l.image_id
    where l.split = 'holdout' and i.split = 'holdout'
    group by l.generation
),
models as (
    select generation, arg_max(model, created_at) as model, bool_or(weights is not null) as has_weights
    from stored_models
    group by generation
),
manifests as (
    select generation, count(*) as manifests from stored_manifests group by generation
)
select
    coalesce(p.generation, m.generation)::INT as generation,
    coalesce(p.model, m.model) as model,
    coalesce(m.has_weights, false) as has_weights,
    coalesce(p.pool, 0) as pool,
    p.confidence,
    p.confident / nullif(p.pool, 0) as confident,
    coalesce(h.holdout, 0) as holdout,
    h.top1,
    coalesce(n.manifests, 0) as manifests
from pool as p
full join models as m on m.generation = p.generation
left join holdout as h on h.generation = p.generation
left join manifests as n on n.generation = p.generation
order by 1;
