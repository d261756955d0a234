-- Purpose: where the pictures of a pack lie, leaving out shards that are gone.
-- Inputs:  stored_packed, shards (shard and number of those that are there).
-- Grain:   one row per image, in no order.
-- Parameters: $pack.
select p.image_id, s.number, p.byte_offset, p.byte_length
from stored_packed as p
join shards as s on s.shard = p.shard
where p.pack = $pack;
