-- Purpose: the images that can be compared, by what they have in common: nodes of a graph whose edges join twins.
-- Inputs:  stored_images.
-- Grain:   one row per image and space: 'bytes' (images with the same content; node: the lowest image_id of them) and
--          'phash' (node: the hash). A hash of fewer than $structure bits is that of a plain picture, or of one so
--          simple that strangers share it. Unreadable and unscanned images have no hash.
-- Parameters: $structure.
select 'bytes' as space, first as node, image_id, split
from (
    select
        image_id, split, min(image_id) over (partition by content_hash) as first,
        count(*) over (partition by content_hash) as copies
    from stored_images
    where content_hash is not null
)
where copies > 1
union all
select 'phash', phash, image_id, split
from stored_images
where phash is not null and bit_count(phash) >= $structure;
