-- Purpose: the copies of pictures that `curator pack` made for trainings.
-- Inputs:  stored_packed (the table's files).
-- Grain:   one row per image and pack.
select
    image_id, pack, shard, byte_offset, byte_length, width, height, content_hash, source_hash, added_at
from stored_packed;
