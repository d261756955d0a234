-- Purpose: the features of a split's images, of the model that labeled a generation.
-- Inputs:  stored_embeddings, stored_images, stored_labels.
-- Grain:   one row per image, in the order of the ids; label is the trusted one, so null in the pool.
-- Parameters: $generation, $split.
select e.image_id, i.label::INT as label, e.vector
from stored_embeddings as e
join stored_images as i on i.image_id = e.image_id
where i.split = $split and (i.label is not null or $split = 'unlabeled')
  and e.model = (select max(model) from stored_labels where generation = $generation)
order by e.image_id;
