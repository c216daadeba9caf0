return { core = require "kigo.core" }
