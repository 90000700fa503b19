-- The group by which hints are read is there, also after somebody deleted it or the stream.
redis.pcall('XGROUP', 'CREATE', HINTS, GROUP, '0', 'MKSTREAM')
