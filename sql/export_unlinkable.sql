-- Purpose: images that an image folder cannot link to, because they lie in a tar shard or have another ending than those
--          that readers of image folders look for.
-- Inputs:  rows (a manifest's rows).
-- Grain:   one row per such image, in the order of the ids; none where a folder of links is possible.
-- Parameters: $endings (list of endings in lower case, with the dot), $extract (whether shards may be read out).
select uri, shard
from rows
where (shard is not null and not $extract) or not list_contains($endings, lower(regexp_extract(uri, '\.[^./]*$')))
order by image_id;
