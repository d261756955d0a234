-- Purpose: how often each kept image counts, so that a class that has any candidate sums to the quota: n images get
--          quota // n copies each, and the first quota % n by rank one more.
-- Inputs:  chosen (the policy's answer).
-- Grain:   one row per kept image.
-- Parameters: $per_class, $fill ('copies' or 'none'), $max_copies (null for no cap).
select
    image_id, label, confidence, source, rank,
    case
        when $fill = 'none' then 1
        else least($per_class // n + (rank <= $per_class % n)::BIGINT, coalesce($max_copies, $per_class))
    end::INT as copies
from (select *, count(*) over (partition by label) as n from chosen);
