-- Purpose: generations whose labels come from a model that is not registered, or not for this generation, or from several.
-- Inputs:  stored_labels, stored_models.
-- Grain:   one row per generation and model; none in a sound store.
-- Mend:    bring models back as they were before the row left them; after an import that was stopped, run it again
with given as (
    select generation, model, count(*) as images from stored_labels group by generation, model
)
select g.generation, g.model, g.images, m.generation as generation_of_model
from given as g
left join stored_models as m on m.model = g.model
where g.generation is distinct from m.generation
   or (select count(*) from given as other where other.generation = g.generation) > 1
order by g.generation, g.model;
