-- Purpose: the tar files of a pack and how long each must be to hold its pictures.
-- Inputs:  stored_packed.
-- Grain:   one row per shard, in the order in which they were written.
-- Parameters: $pack.
select shard, max(byte_offset + byte_length) as bytes, count(*) as images
from stored_packed
where pack = $pack
group by shard
order by shard;
