-- Purpose: the embeddings of a model to compare: those of its present weights, one of each image.
-- Inputs:  stored_embeddings, stored_models, stored_images.
-- Grain:   one row per image, by image_id.
-- Parameters: $model.
select e.image_id, any_value(i.split) as split, any_value(e.vector) as vector
from stored_embeddings as e
join stored_models as m on m.model = e.model and m.weights_hash = e.weights_hash
join stored_images as i on i.image_id = e.image_id
where e.model = $model
group by e.image_id
order by e.image_id;
