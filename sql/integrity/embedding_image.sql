-- Purpose: embeddings of images or by models that are not in the store.
-- Inputs:  stored_embeddings, stored_images, stored_models.
-- Grain:   one row per such embedding; none in a sound store.
-- Mend:    bring images or models back as they were before rows left them
select e.image_id, e.model
from stored_embeddings as e
where e.image_id not in (select image_id from stored_images where image_id is not null)
   or e.model not in (select model from stored_models where model is not null)
order by e.model, e.image_id;
