-- Purpose: how often each kept image counts, so that a class that has any sums to the quota: n images get quota // n
--          copies each, and the first quota % n by rank one more.
-- Inputs:  kept (what the quota leaves).
-- Grain:   one row per kept image.
-- Parameters: $per_class, $fill ('copies' or 'none'), $max_copies (null for no cap).
select
    * exclude (rank, n),
    case
        when $fill = 'none' then 1
        else least($per_class // n + (rank <= $per_class % n)::BIGINT, coalesce($max_copies, $per_class))
    end::INT as copies
from (select *, count(*) over (partition by label) as n from kept);
