-- Purpose: the features of a split's images, of the model that labeled a generation, with the weights that it has now:
--          features of other weights of the same name mean something else.
-- Inputs:  stored_embeddings, stored_models, stored_images, stored_labels, trusted.
-- Grain:   one row per image, in the order of the ids; label is the trusted one, so null in the pool.
-- Parameters: $generation, $split.
select e.image_id, t.label, e.vector
from stored_embeddings as e
join stored_models as m on m.model = e.model and coalesce(m.weights_hash, '') = e.weights_hash
join stored_images as i on i.image_id = e.image_id
left join trusted as t on t.image_id = e.image_id
where i.split = $split and (t.label is not null or $split = 'unlabeled')
  and e.model = (select max(model) from stored_labels where generation = $generation)
order by e.image_id;
