-- Purpose: gives each incoming image the id that its uri has in this store. The id is 63 bits of the md5 of the uri, so
--          it does not depend on the order or place of import; where two uris meet on one number, the later one takes
--          the md5 of the uri with a counter behind it (the caller goes on until nothing is left to move).
-- Inputs:  incoming (uri, image_id, ...), stored_images.
-- Grain:   one row per incoming image whose id belongs to another uri.
-- Parameters: $salt (1, 2, ...), $mask (2^63 - 1; smaller only to force collisions in a test).
select
    n.uri,
    (md5_number_lower(n.uri || '#' || $salt) >> 1)::BIGINT & $mask::BIGINT as image_id
from incoming as n
left join stored_images as o on o.image_id = n.image_id and o.uri <> n.uri
left join (select image_id, min(uri) as uri from incoming group by image_id having count(*) > 1) as t
    on t.image_id = n.image_id
where o.image_id is not null
   -- inside one import an image that the store has keeps its number; otherwise the first uri does
   or (t.image_id is not null
       and n.uri not in (select uri from stored_images)
       and (n.uri <> t.uri or n.image_id in (select image_id from stored_images)));
