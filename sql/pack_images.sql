-- Purpose: the images that a training reads, the labeled ones and a manifest's, and whether a pack has them.
-- Inputs:  rows (a manifest's rows, or none), labeled_rows, stored_images, stored_packed,
--          shards (the pack's files that are there).
-- Grain:   one row per image, however many copies count.
-- Parameters: $pack.
with needed as (
    select image_id, uri, shard, byte_offset, byte_length from rows
    union all
    select image_id, uri, shard, byte_offset, byte_length from labeled_rows
),
packed as (
    select p.image_id
    from stored_packed as p
    join shards as s on s.shard = p.shard
    where p.pack = $pack
)
select
    n.image_id, n.uri, n.shard, n.byte_offset, n.byte_length, i.content_hash, p.image_id is not null as is_packed
from needed as n
left join stored_images as i on i.image_id = n.image_id
left join packed as p on p.image_id = n.image_id;
