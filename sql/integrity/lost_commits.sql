-- Purpose: tables that a manifest was built from at a version which they do not have any more: their last commits are gone.
--          A table of duplicates may be made again from nothing, so its versions say nothing.
-- Inputs:  stored_manifests, newest (table_name, version: the newest one of each table that can be opened).
-- Grain:   one row per such table and manifest; none in a sound store.
-- Mend:    bring the table's last commits and their files back from a backup, or run again what made the rows
with read as (
    select name, unnest(json_keys(lineage -> 'tables')) as table_name, lineage -> 'tables' as versions
    from stored_manifests
)
select r.table_name, r.name as manifest, (r.versions ->> r.table_name)::int as built_from, n.version as newest
from read as r
join newest as n on n.table_name = r.table_name
where r.table_name <> 'duplicates'
  and built_from > n.version
order by all;
