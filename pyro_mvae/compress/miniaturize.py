def miniaturize(): pass
class BudgetError(ValueError): pass
