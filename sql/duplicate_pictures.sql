-- Purpose: the members of the graph after each pair was looked at. Its nodes are pictures: those with the same bytes are
--          one, named by its lowest image_id.
-- Inputs:  members (see duplicate_members.sql), pairs (of pictures that are copies), stored_images.
-- Grain:   one row per image that has the bytes of another one or is in a pair.
select space, node, image_id, split
from members
where space = 'bytes'
union all
select 'bytes', image_id, image_id, split
from stored_images
where image_id in (select node from pairs union select other from pairs)
  and image_id not in (select image_id from members where space = 'bytes');
