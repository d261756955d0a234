-- Purpose: what a scan for duplicates looked at.
-- Inputs:  stored_images, members (see duplicate_members.sql).
-- Grain:   one row.
-- Parameters: $structure.
select
    count(*) as images,
    count(*) filter (phash is not null) as checked,
    count(*) filter (status = 'unscanned') as not_checked,
    count(*) filter (status = 'unreadable') as unreadable,
    count(*) filter (bit_count(phash) < $structure) as plain,
    (select count(*) from members where space = 'embedding') as embedded
from stored_images;
