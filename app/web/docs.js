"use strict";

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Swagger UI would otherwise ask a server on the internet whether the document is valid.
  validatorUrl: null,
});
