-- Purpose: the images of some splits that a model's weights have given no embedding yet, in the order of their place.
-- Inputs:  stored_images, stored_embeddings.
-- Grain:   one row per image.
-- Parameters: $splits, $model, $weights_hash.
select image_id, uri, shard, byte_offset, byte_length
from stored_images as i
where list_contains($splits, split) and status <> 'unreadable'
  and not exists (
      select 1 from stored_embeddings as e
      where e.image_id = i.image_id and e.model = $model and e.weights_hash = $weights_hash
  )
order by shard, byte_offset, uri;
