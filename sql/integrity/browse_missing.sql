-- Purpose: generations whose labels are not sorted for the app as they are now.
-- Inputs:  stored_histograms, bases (family, generation, previous, basis: what the derived tables are to hold).
-- Grain:   one row per generation; none in a sound store.
-- Mend:    curator index, or curator doctor --mend
select generation
from bases
where family = 'browse'
  and (generation, basis) not in (select (generation, basis) from stored_histograms)
order by generation;
